"""Methods that remove features: coalitions of what is present, and what their values say of each feature."""
