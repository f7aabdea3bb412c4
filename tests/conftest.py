from cluster.session import prepare_environment

prepare_environment("local")  # before any test imports ray
