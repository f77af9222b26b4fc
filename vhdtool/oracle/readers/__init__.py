"""The oracles' own readers of disk images: no code here is shared with what wrote them."""
