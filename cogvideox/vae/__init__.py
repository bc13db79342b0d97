"""The 3D causal VAE: clips to latents and back, with the published weights' names."""
