"""The teachers on Ray Serve: replicas, deployment, promotions."""
