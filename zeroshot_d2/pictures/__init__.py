"""What all pictures share: colours, marks of unseen classes, files, and the HTML report."""
