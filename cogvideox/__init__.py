"""CogVideoX fine-tuning: the rooms behind `train_video.py`. See README.md for the map."""
