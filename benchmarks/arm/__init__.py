"""TFLite files on emulated ARM cores: their numbers, and their instructions; see README.md."""
