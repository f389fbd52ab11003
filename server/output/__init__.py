"""What a run gives to others: exported policies, the Hub, tracking tools, the report."""
