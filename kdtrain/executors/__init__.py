"""Who carries a study's jobs out: Ray Tune, Ray Train, or this process."""
