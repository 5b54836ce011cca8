"""Effects of damaged files, and of kills at any moment: many seeded cases, and an exit status that reports errors."""
