"""One self-contained HTML file about a fit: what was fitted, how well, what is odd, and its latent space to move in."""
