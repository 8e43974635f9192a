"""UltraEdit's mathematics: what one backward pass gives, its running statistics, and the closed form."""
