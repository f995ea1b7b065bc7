"""What of the documentation's site is made from the code: a page of each loss, its pictures."""
