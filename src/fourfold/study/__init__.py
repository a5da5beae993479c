"""Many runs together: their results, their statistics, and the verdict of each quadrant."""
