"""mutate_shim"""
