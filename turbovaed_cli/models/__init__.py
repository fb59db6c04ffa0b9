"""The networks: teachers (stock diffusers classes, and Video DC-AE) and the student that learns from them."""
