"""Studies of DICOM objects, of files and of an archive: what is in them, in order, and which images a report takes."""
