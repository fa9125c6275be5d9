"""The commands of zfsiloctl: one file per noun."""
