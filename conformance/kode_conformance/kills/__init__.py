"""Writers that are killed: at random moments, at every call that they make, and crash after crash."""
