"""What a reader of a paper skips: no algorithm is in here, no prompt, no reward, no problem."""
