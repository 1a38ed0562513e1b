"""The pages of the people who review job cards: rendered here, readable without JavaScript, nothing fetched from elsewhere."""
