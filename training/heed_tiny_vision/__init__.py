"""How the bundled model heed-tiny-vision is made: scenes, tasks, training, measuring, export."""
