"""What a run leaves on disk and resumes from."""
