"""The commands, one file each: parse what the user gave, call the library, print."""
