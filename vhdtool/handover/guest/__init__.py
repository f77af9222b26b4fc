"""The lab's guest: a Debian kernel and an initramfs whose only job is to write and read back."""
