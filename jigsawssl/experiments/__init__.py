"""Many runs, one answer: labelled archives, budgets of labels, and the label-efficiency curve."""
