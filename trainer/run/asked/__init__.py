"""What a run is asked by: its data, its checkpoint, a second model beside its own."""
