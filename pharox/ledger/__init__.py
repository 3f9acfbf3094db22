"""What is asked of the log as a whole: who follows it, what happened, what it folds to."""
