"""ds-serve beside other servers of text: the same model, the same chats, the same client."""
