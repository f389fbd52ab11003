"""SmolVLA as both sides build, load and save it."""
