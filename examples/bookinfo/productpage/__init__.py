"""productpage: the page that readers see, put together from details and reviews."""
