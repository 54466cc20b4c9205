void cring_placeholder(void); void cring_placeholder(void) {}
