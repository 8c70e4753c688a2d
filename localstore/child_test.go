package localstore

const childEnv = "LOCALSTORE_TEST_CHILD"

func child() int { return 0 }
