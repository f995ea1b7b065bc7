"""What any detector's results show of the agreement between scores and boxes."""
