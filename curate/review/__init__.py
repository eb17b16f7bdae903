"""Review: a person looks at sessions before they are published, in an order of risk, and says which may go."""
