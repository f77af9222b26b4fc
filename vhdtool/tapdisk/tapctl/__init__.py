"""tap-ctl: blktap's control protocol, and the disks that it drives."""
