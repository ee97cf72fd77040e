"""Which requests may have their modules and blocks now, and how missing modules come."""
