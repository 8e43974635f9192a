"""Many runs: what a sweep file says, its folder, its tasks, and one table over them."""
