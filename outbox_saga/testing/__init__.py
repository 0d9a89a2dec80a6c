"""What the tests of services need: private servers, and later a plugin and a crash explorer."""
