"""What the scheduler tells the workers about a step, and what they answer."""
