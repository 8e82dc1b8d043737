"""`make gpu`: what one GPU shows in ten minutes, each part in a process of its own."""
