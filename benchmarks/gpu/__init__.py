"""What only a GPU can tell, measured in minutes: `run.sh` runs every section and writes one JSON file."""
