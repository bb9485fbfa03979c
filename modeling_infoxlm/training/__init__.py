"""Pre-training: arguments, recipes and the Trainer of the joint MLM, TLM and XlCo objective."""
