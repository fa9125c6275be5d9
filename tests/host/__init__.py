"""The adapters without root: scripted tools, an imitated configfs and sysfs, real mke2fs images."""
