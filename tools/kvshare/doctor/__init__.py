"""`kvshare doctor`: whether these machines can run the stack, found before anything is up."""
