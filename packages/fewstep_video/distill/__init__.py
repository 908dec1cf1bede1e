"""What distillation of video has of its own: motion apart from appearance, two experts, image critics. The rest is the core's."""
