"""What the stories of the end-to-end test are told with."""
