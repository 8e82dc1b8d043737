"""The evidence of docs/two_teachers: two teachers with different skills, in several arms, over seeds."""
