"""Work on ranks: in this process or in processes of this machine; cluster/workers has Ray."""
