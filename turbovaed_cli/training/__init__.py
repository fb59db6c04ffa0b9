"""What `distill` is made of: losses, the batches, and the state that a resume needs."""
