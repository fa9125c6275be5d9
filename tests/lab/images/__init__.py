"""Builds what the lab's machines boot from: kernel, initramfs and root file system."""
