"""Tests against peers: qemu-img, libvhdi, fio, libnbd, sanlock, tgt and others."""
