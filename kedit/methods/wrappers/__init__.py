"""Methods that are built around another one."""
