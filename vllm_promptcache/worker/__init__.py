"""The workers' side: copies of KV before and after the forward pass, and position ids."""
